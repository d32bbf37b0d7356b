"""The `mdstore` command. Installed as `mdstore.tools`."""
