"""The chip's arithmetic in integers, bit for bit: what the RTL is verified against.

All arrays are NumPy's int64, whatever the width of the numbers that they hold.
"""
