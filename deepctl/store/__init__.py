"""The store of one profile: sessions, checkpoints, their shared contents, and rewinds.

It depends only on files, locks and names. Operations on whole profiles (memory, transfer, purge, wipe) are in
`deepctl.domain`.
"""
