"""Steering at inference time: cross-modality representation manipulation (CMRM) and the hooks it stands on."""
