"""A Hub on 127.0.0.1, and the tests that need one."""
