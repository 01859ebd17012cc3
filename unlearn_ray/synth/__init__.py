"""The pure core of data making: what to ask, how to read the replies, what to keep. Knows no engine, no Ray and no rows on disk."""
