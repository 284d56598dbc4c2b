"""The page of `ddpm-jax explore`: move one setting of a sampler, and see what changes.

`settings` and `choices` say how images are drawn. `drawing` and `edits` compute what is shown. `pictures` and `charts` turn
it into HTML. `page` arranges it, and `server` shows it, with Gradio, which is the extra `explore` of this package.
"""
