"""Apply the vectors of tga-steer with transformers and safetensors alone.

    python apply_cmrm_vectors.py MODEL vectors.safetensors picture.png "What is in the picture?" [ALPHA]

MODEL is the directory or hub id that the vectors were made for; what they mean in another model, nobody knows. Without
ALPHA the strength is the one that tga-steer chose, or 1.
"""

import sys

import torch
from PIL import Image
from safetensors import safe_open
from transformers import AutoModelForImageTextToText, AutoProcessor

name, vectors, picture, question, *strength = sys.argv[1:]
model = AutoModelForImageTextToText.from_pretrained(name).eval()
processor = AutoProcessor.from_pretrained(name)

with safe_open(vectors, framework="pt") as file:
    alpha = float(strength[0] if strength else file.metadata()["alpha"] or 1.0)
    shifts = {int(key.removeprefix("layer_")): file.get_tensor(key) for key in file.keys()}

for layer, shift in shifts.items() if alpha else ():
    scaled = (alpha * shift).to(model.device, model.dtype)

    def correct(module, args, output, scaled=scaled):
        """Take the scaled shift away from what a decoder layer puts out, at every position."""
        return (output[0] - scaled, *output[1:]) if isinstance(output, tuple) else output - scaled

    model.get_decoder().layers[layer - 1].register_forward_hook(correct)

turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}
text = processor.apply_chat_template([turn], add_generation_prompt=True)
image = Image.open(picture).convert("RGB")
inputs = processor(images=[image], text=text, add_special_tokens=False, return_tensors="pt")
with torch.inference_mode():
    tokens = model.generate(**inputs.to(model.device), max_new_tokens=64, do_sample=False)
print(processor.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
