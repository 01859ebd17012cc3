"""Terms that make forgetting last: the gradient of the forget loss is also taken at displaced weights, where an attacker or noise would bring them.

A term is one module with a `displace` function, one config class, and one line in `table.py`.
"""
