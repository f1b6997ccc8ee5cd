"""Notifications: what is wrong with functions or the machine, told to a web hook or by e-mail, once and not each time.

`facts` looks, `states` decides (pure), `keeper` remembers and tells.
"""
