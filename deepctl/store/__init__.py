"""The store of one profile: sessions, checkpoints, the contents they share, and rewinds.

Below it are only files, locks and names. Work on whole profiles (memory, transfer, purge, wipe) is in `deepctl.domain`.
"""
