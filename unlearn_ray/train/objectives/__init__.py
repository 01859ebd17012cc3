"""What a training lowers or teaches: one function per objective, and `table.OBJECTIVES`, which names them as the config does.

A function gets the config of its objective and the `Answers` of one forward pass; it returns a sum over them. `table.Loss.per` says what the
sum is divided by: the learnt tokens of the whole step, or its rows, over all passes and ranks. So neither the size of a pass nor the number
of workers changes a loss. The retain term, and the term that teaches invented answers beside, are added by the loop.
"""
