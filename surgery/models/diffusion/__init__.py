"""What must be known of image and video models: how their files call the same module, and where its rows lie."""
