"""A lazy tensor -> its bytes, in windows of bounded size. The only room that computes."""
