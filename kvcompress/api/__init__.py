"""The library's entry points: encode with options, save and load whole sessions."""
