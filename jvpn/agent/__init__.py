"""The client process: session view, health monitor, candidates; runs one data worker."""
