"""Every frontend on every backend, in one scenario; ``make matrix`` prints what became of it.

`test_matrix` is the scenario: each test is a step, and its name the sentence that has to hold.
A step, a frontend and a backend are a cell, and `cell` is what a step can do in one: the guest's
driver at one end, the world behind the backend at the other, and the accounts of what they gave
each other.  Each frame has arrived unchanged and in order, or is counted; where, `table` shows.

To add a backend, write the `kit.outsides.Outside` that its contract tests need anyway (some thirty
lines: how frames come in from outside, what has left, and, in words, what it can't do), and name
it in `backends.BACKENDS`.  To add a frontend, say in `frontends.FRONTENDS` how its driver starts.
"""
