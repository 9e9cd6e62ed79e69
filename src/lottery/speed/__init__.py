"""`lottery measure`: how fast tickets are on this machine, in no output that DVC hashes: timings differ each time.

- `measure`: a ticket's forms, timed side by side
- `page`: .lottery/speed.html, which begins with the answer
"""
