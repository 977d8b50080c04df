"""Phrasings that prompts are made of, each table's first entry the plainest."""

from training.scenes import Tone

TONES: dict[Tone, tuple[str, ...]] = {
    "greyscale": (
        "make it black and white", "convert to greyscale", "make it grayscale", "remove the colors",
        "turn it into a black and white picture", "greyscale", "desaturate it", "in black and white", "make it gray",
        "in shades of gray", "like an old black and white photo", "drain the colors", "turn everything gray",
        "make it monochrome", "monochrome", "no colors", "take the color out", "strip away all color", "b&w",
        "without any color", "get rid of the colors", "convert this to black and white", "a black and white version",
        "a gray version of it", "turn the picture to grayscale", "make the whole image gray", "lose the color",
        "i want it in black and white", "only grays", "show it without color",
        "set the saturation to zero", "bleach out the colors", "as if printed in black ink", "a grey image",
    ),
    "invert": (
        "invert the colors", "invert it", "make a negative", "turn it into a negative", "reverse the colors",
        "swap dark and light", "show the negative", "the opposite colors", "negative image", "invert all colors",
        "make it look like a film negative", "flip all the colors to their opposites", "invert the image", "negative",
        "dark becomes light and light becomes dark", "color inversion", "give me the negative of this picture",
    ),
    "brighten": (
        "make it brighter", "brighten it", "lighten the image", "brighten the picture", "more light",
        "turn up the light", "make everything lighter", "it is too dark", "increase the brightness", "brighter",
        "raise the exposure", "add light", "make the picture lighter", "turn the brightness up", "light it up",
        "a brighter version", "brighten this up a little", "this looks too dark", "make it much lighter", "lighter",
    ),
    "darken": (
        "make it darker", "darken it", "darken the image", "make the picture darker", "less light", "dim the light",
        "make everything darker", "it is too bright", "decrease the brightness", "darker", "lower the exposure",
        "reduce the light", "turn the brightness down", "a darker version", "dim it", "this looks too bright",
        "make it much darker", "turn down the lights", "underexpose it", "make the whole image dim",
    ),
    "outline": (
        "turn it into a line drawing", "draw its outlines", "make it a line drawing", "trace the outlines",
        "only the outlines", "as a line drawing", "just lines", "a sketch of its edges", "line drawing", "line art",
        "turn it into line art", "show only the edges", "make a pencil outline of it", "convert it to outlines",
        "make it a coloring page", "an outline drawing of it", "reduce it to lines", "edges only", "trace it",
    ),
}  # fmt: skip
MIRROR = (
    "mirror the image", "mirror it", "flip it horizontally", "flip the image", "mirror image", "flip horizontally",
    "turn it to face the other way", "swap left and right", "reflect it", "make it look in the other direction",
    "turn it around", "as seen in a mirror", "reverse the picture", "flip the picture from left to right", "mirrored",
    "mirror this picture", "reverse it horizontally", "make it face the opposite direction", "horizontal flip",
    "a mirrored version of it", "reflect the image left to right", "the mirror image",
    "exchange the left side and the right side", "flip this around", "reflect this picture", "face it the other way",
)  # fmt: skip
TURNS = {
    1: (
        "rotate it to the left", "turn it 90 degrees counterclockwise", "rotate left", "a quarter turn to the left",
        "turn it on its left side", "rotate by 90 degrees to the left", "rotate the image 90 degrees counterclockwise",
        "turn the picture to the left", "tip it over to the left",
    ),
    2: (
        "turn it upside down", "rotate it by 180 degrees", "flip it upside down", "upside down", "stand it on its head",
        "flip it vertically", "half a turn", "rotate the image 180 degrees", "turn the picture on its head",
        "put it upside down",
    ),
    3: (
        "rotate it to the right", "turn it 90 degrees clockwise", "rotate right", "a quarter turn to the right",
        "turn it on its right side", "rotate by 90 degrees to the right", "rotate the image 90 degrees clockwise",
        "turn the picture to the right", "tip it over to the right",
    ),
}  # fmt: skip
RECOLOUR = (  # {it} is the thing, {colour} the new one
    "make {it} {colour}", "paint {it} {colour}", "color {it} {colour}", "turn {it} {colour}",
    "give {it} the color {colour}", "dye {it} {colour}", "{it} should be {colour}", "change {it} to {colour}",
    "i want {it} to be {colour}", "change the color of {it} to {colour}", "recolor {it} in {colour}",
    "tint {it} {colour}", "{it} in {colour}", "use {colour} for {it}", "colour {it} {colour}",
    "repaint {it} in {colour}", "swap the color of {it} for {colour}", "make the color of {it} {colour}",
)  # fmt: skip
RESTYLE = (
    "make it {style}", "in {style} style", "turn it into {style} style", "redraw it in {style} style",
    "the same thing as {a_style} drawing", "change the style to {style}", "as {a_style} picture",
    "make it look {style}", "convert it to {style} style", "the {style} version of it", "{style} style",
    "use {style} style", "draw this again as {a_style} icon", "switch to {style} style",
    "show it in {style} style", "render it in {style} style", "{a_style} rendition", "turn this into {a_style} image",
    "give it {a_style} look", "i want it in {style} style",
)  # fmt: skip
RESTYLE_BY_NAME = (
    "make the {thing} {style}", "turn the {thing} into {style} style", "redraw the {thing} in {style} style",
    "the {thing} as {a_style} picture", "make the {thing} look {style}", "convert the {thing} to {style} style",
    "the {style} version of the {thing}", "draw the {thing} again as {a_style} icon", "the {thing} in {style} style",
    "show the {thing} in {style} style", "render the {thing} in {style} style",
    "turn the {thing} into {a_style} image", "give the {thing} {a_style} look", "i want the {thing} in {style} style",
)  # fmt: skip
BACKGROUND = (
    "change the background to {colour}", "make the background {colour}", "{colour} background",
    "put it on {a_colour} background", "turn the background {colour}", "set the background to {colour}",
    "with {a_colour} background", "put {colour} behind it", "use {colour} for the background",
    "color the background {colour}", "on {colour}", "everything behind it should be {colour}",
    "{a_colour} background instead", "paint the background {colour}",
    "swap the background for {colour}", "i want {a_colour} background", "have {colour} behind it",
    "fill the background with {colour}", "place it on {colour}", "background: {colour}", "in front of {colour}",
    "give it {a_colour} background", "the background should be {colour}", "recolor the background to {colour}",
)  # fmt: skip
REMOVE = (
    "remove the {thing}", "take away the {thing}", "delete the {thing}", "erase the {thing}", "get rid of the {thing}",
    "without the {thing}", "the {thing} should go", "no {thing}", "take the {thing} out", "make the {thing} disappear",
)  # fmt: skip
REPLACE = (
    "replace {it} with {other}", "turn {it} into {other}", "change {it} to {other}", "swap {it} for {other}",
    "make {it} {other}", "put {other} in place of {it}", "{other} instead of {it}", "exchange {it} for {other}",
)  # fmt: skip
SMALLER = ("smaller", "little", "half as big", "tiny", "half the size", "a lot smaller")
BIGGER = ("bigger", "larger", "twice as big", "huge", "double the size", "a lot larger")
ASKING = (
    "a picture of", "an image of", "a drawing of", "an illustration of", "a photo of", "a painting of", "artwork of",
    "draw", "draw me", "please draw", "make", "make me", "create", "generate", "design", "give me", "i want",
    "i want to see", "let me see", "could you draw", "would you make", "may i have", "get me", "here is", "this is",
    "there is", "just", "only", "imagine", "it is", "a portrait of", "a close-up of", "clipart of", "a logo with",
    "a watercolor of", "an oil painting of", "a sticker of", "a vector of", "a render of", "paint", "paint me",
    "i would like", "i need", "can you make", "please create", "we need", "show", "now", "how about", "what about",
    "the best picture of", "something like", "an emoji of", "a photograph of", "concept art of", "a sketch of",
    "i am looking for", "do you have", "can i get", "try", "next", "my kids want", "our logo is",
)  # fmt: skip
ASKED = (
    "thanks", "thank you", "high quality", "very detailed", "digital art", "clip art", "on its own", "centered",
    "isolated", "as a sticker", "for a book", "for my presentation", "emoji", "nothing around it", "4k", "8k", "hd",
    "highly detailed", "sharp focus", "studio lighting", "masterpiece", "vector art", "award winning", "trending",
    "full body", "close up", "beautiful", "best quality", "for children", "for my website", "as an icon", "please",
    "in the middle", "by itself", "clean lines", "realistic", "professional", "high resolution", "minimalist",
    "for my daughter", "on the screen", "nice and clear", "as in a picture book", "well lit", "for a card", "wow",
)  # fmt: skip
PRAISE = (
    "cute ", "lovely ", "beautiful ", "pretty ", "cool ", "perfect ", "single ", "fluffy ", "majestic ", "old ",
    "new ", "young ", "friendly ", "funny ", "nice ", "shiny ", "magical ", "elegant ", "realistic ", "detailed ",
    "adorable ", "gorgeous ", "wild ", "tasty ", "fresh ", "famous ", "modern ", "classic ", "vintage ", "stylish ",
    "colorful ", "glossy ", "round ", "soft ", "strong ", "fancy ", "typical ", "real ", "good ", "great ", "fine ",
    "wonderful ", "amazing ", "charming ", "plain ", "ordinary ", "strange ", "mysterious ",
    "very nice ", "really cool ", "super cute ", "well-known ", "brave ",
    "clever ", "quiet ", "lonely ", "proud ", "sweet ", "warm ", "heavy ", "delicate ", "sturdy ", "rustic ",
)  # fmt: skip
DOING = (
    "sitting", "standing", "waiting", "resting", "posing", "looking at us", "looking at the camera", "at home",
    "in the sun", "having fun", "outside", "from the front", "from the side", "up close", "that i like",
    "i saw today", "all alone", "of my dreams", "ready to go", "for you",
)  # fmt: skip
