"""What each target takes: rules that a file is checked by, one file a target."""
