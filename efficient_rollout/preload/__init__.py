"""A Python whose imports are done: one process imports, and every other of a job is a fork of it.

`server.py` starts, and gives the command that stands for `python`; that command is `client.py`, and asks for a fork.
Linux alone; standard library alone, whatever is imported.
"""
