"""What a program calls: encode with options, save and load whole sessions. The command line is a face of this."""
