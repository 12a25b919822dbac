"""What fault scripts are made with: the emulator's wire, the kernel's queues, tables and routes, and their undoing."""
