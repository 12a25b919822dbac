"""What attacks are made of: seeing, sending, spoiling; scripts are beside this folder."""
