"""What must be known of models: their fused layouts, the classes that load them, their names and ties."""
