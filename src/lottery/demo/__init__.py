"""`lottery demo`: a page on 127.0.0.1 where one draws, and dense and the tickets of every level answer.

- `frame`: a drawing as an image such as the networks learned from
- `networks`: what the networks say, and which pixels they read
- `page`: what is shown (page.html.j2, page.css), and the pad (pad.js)
- `serve`: the server

gradio serves the page. The pad is a canvas in one of its HTML components: gradio's own pad, the Sketchpad, tells of a
stroke only once it has ended, sends it in a dozen requests, wants its brush chosen first, and needs WebGL.
"""
