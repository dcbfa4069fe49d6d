"""Regular expressions that may be anyone's, in bounded time.

ambiguity  whether what an expression repeats can be matched in more than one way
measuring  how an expression grows with names: what may take forever, and how many parts are of any length
matching   a match that no expression makes long
rule       an expression as it is used on names
"""
