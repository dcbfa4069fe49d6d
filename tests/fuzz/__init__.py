"""Every parser of bytes that strangers write, given bytes that nobody wrote: each is read, or refused in our words.

harnesses   a row for each parser: what reads the bytes, and bytes that it takes
mutations   what is changed: bytes, or a value in a tree of JSON
judging     what came of an input: read, refused, or wrong (another error, too much time, laxer than safetensors)
corpus/     what coverage-guided runs found worth keeping, and each input that was once answered wrongly

`benchmarks/fuzz.py` runs them for long, under atheris; tests/faults/test_parsers_fuzzed.py for seconds.
"""
