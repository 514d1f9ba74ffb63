"""The exported model as a directory: its files, their checksums and what describes them."""
