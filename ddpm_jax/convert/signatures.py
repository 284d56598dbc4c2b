"""The tensor by which each codebase is recognized: every network of it has this name."""

SIGNATURES: dict[str, str] = {
  "pesser": "temb.dense.0.weight",
  "ho_tf": "temb/dense0/W",
  "openai": "time_embed.0.weight",
  "ncsnpp": "all_modules.0.weight",
  "diffusers": "time_embedding.linear_1.weight",
  "lucidrains": "init_conv.weight",
  "edm": "map_layer0.weight",
}
