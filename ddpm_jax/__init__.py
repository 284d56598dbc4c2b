"""The DDPM family in JAX: DDPM, DDIM, Improved DDPM, ADM, Analytic-DPM, NPR-DPM and SN-DPM."""

__version__ = "0.1.0"
