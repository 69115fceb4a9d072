"""A Python whose imports are done: one process imports, and every other of a job is a fork of it.

`start.py` starts the server and gives the command that stands for `python`; that command is `client.py`, and asks
`server.py` for a fork. Linux alone; standard library alone, whatever is imported.
"""
