"""The page of app.py: what happens at each event, and the layout."""

import functools
import html
import logging
import os
import shutil
import tempfile
import threading
import time
from typing import List, NamedTuple, Optional, Tuple

import igvg_d2  # noqa: F401  (first: it names a missing requirement in one line)

# isort: split
import cv2
import gradio as gr
import numpy as np
from answers import AnswerFiles
from PIL import Image

from igvg_d2.data.tokenizer import build_tokenizer, unknown_words
from igvg_d2.inference import GroundingPredictor, GroundingResult
from igvg_d2.io.image import read_image
from igvg_d2.io.terminal import printable
from igvg_d2.visualization.drawing import instance_color

logger = logging.getLogger("igvg_d2.demo")

LAYERS = [("instance masks", "masks"), "boxes", "points", "attention"]
# Long side of what is shown, in pixels; downloads have the size of the upload.
SHOWN_SIDES = (640, 1600)
# Questions about one image that can be shown again.
HISTORY = 30
START = "<p>Choose an image, type what to look for, and press Enter.</p>"
SHOW_ON_PHONE = """() => {
    if (innerWidth < 700) document.querySelector("#answer").scrollIntoView({behavior: "smooth"});
}"""
SAVE_IN_BROWSER = """(file) => {
    const link = document.createElement("a");
    link.href = file.url; link.download = file.orig_name;
    document.body.append(link); link.click(); link.remove();
}"""


class Session(NamedTuple):
    """What one visitor has asked of one image, oldest first."""

    photo: str
    results: Tuple[GroundingResult, ...]


# Sliders move often, and photos are slow to decode.
@functools.lru_cache(maxsize=16)
def read_to_show(path: str) -> np.ndarray:
    """RGB uint8 (height, width, 3) with its long side within ``SHOWN_SIDES``."""
    photo = read_image(path, "RGB")  # an upload lies in a folder named by a hash of its content
    side = max(photo.shape[:2])
    scale = np.clip(side, *SHOWN_SIDES) / side
    size = [max(1, round(x * scale)) for x in photo.shape[1::-1]]
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    return cv2.resize(photo, size, interpolation=method)


def refusal(message: str) -> gr.Error:
    """A message for the visitor; Gradio takes it for HTML."""
    return gr.Error(html.escape(message), print_exception=False)


def uploaded_file(component: gr.Image) -> gr.Image:
    """Let an image component hand on the path of its upload, and nothing but an upload.

    ``gr.Image`` would open the file itself, where a damaged one ends in an error without a reason,
    and would download an address that a hand-made request names.
    """
    keep = component.async_move_resource_to_block_cache

    async def keep_upload(path):
        if "://" in str(path):
            raise refusal("Upload the image itself.")
        return await keep(path)

    component.async_move_resource_to_block_cache = keep_upload
    component.preprocess = lambda payload: payload and payload.path
    return component


def new_folder() -> str:
    """A folder within the one that is served."""
    return tempfile.mkdtemp(dir=os.environ["GRADIO_TEMP_DIR"])


def describe(result: GroundingResult) -> str:
    """The answer in words, and a table of the instances, as HTML."""
    asked = f"“{html.escape(result.expression)}” (no-target score {result.no_target_score:.2f})"
    if result.no_target:
        best = "".join(f"{x:.2f}" for x in result.with_thresholds(threshold=0.0).scores[:1])
        best = f"<br>The best candidate scores {best}." if best else ""
        text = f"<b>Nothing in the image matches</b> {asked}{best}"
        return f"<p class='nothing' role='status'>{text}</p>"
    regions = result.regions()
    rows = "".join(
        f"<tr><td><span class='swatch' style='background: rgb{instance_color(i)}'></span>{i + 1}"
        f"</td><td>{score:.2f}</td><td>{', '.join(f'{x:.0f}' for x in box)}</td></tr>"
        for i, (box, score, _) in enumerate(regions)
    )
    count = "1 target" if len(regions) == 1 else f"{len(regions)} targets"
    header = "<tr><th>#</th><th>score</th><th>box (x0, y0, x1, y1)</th></tr>"
    return f"<p role='status'><b>{count}</b> for {asked}</p><table>{header}{rows}</table>"


class GroundingPage:
    """The page of one model.

    Args:
        predictor: answers the questions.
        name: of the model, for the heading.
        examples: rows of the gallery, [path of an image, expression].
        concurrency: questions answered at the same time; further ones wait in the queue.
    """

    def __init__(self, predictor: GroundingPredictor, name: str, examples: list, concurrency: int):
        self.predictor = predictor
        self.name = name
        self.examples = examples
        self.concurrency = concurrency
        self._tokenizer = build_tokenizer(predictor.cfg)
        self._tokenizing = threading.Lock()

    def ask(self, photo: Optional[str], expression: str, session: Optional[Session], *view):
        """Answer a question about an upload; those about another one are forgotten.

        Returns:
            session, entries of the history, and what :meth:`show` returns.
        """
        if not photo:
            raise refusal("Choose an image first: upload, paste or take one, or pick an example.")
        if not expression.strip():
            raise refusal("Type what to look for.")
        start = time.perf_counter()
        try:
            with self._tokenizing:
                unknown = unknown_words(self._tokenizer, expression)
            result = self.predictor(photo, expression)
        except (ValueError, OSError) as error:
            message = str(error).replace(photo, os.path.basename(photo))
            logger.warning("%s", printable(message))
            raise refusal(message) from error
        logger.info("Answered a question in %.2f s", time.perf_counter() - start)
        if unknown:
            words = html.escape(", ".join(unknown[:10]))
            gr.Warning(f"The model does not know, and takes for one and the same word: {words}")
        earlier = session.results if session and session.photo == photo else ()
        session = Session(photo, (*earlier, result)[-HISTORY:])
        entries = [
            (f"{x.expression[:80]} ({'nothing' if x.no_target else len(x.regions())})", i)
            for i, x in enumerate(session.results)
        ]
        newest = len(entries) - 1
        history = gr.Radio(entries[::-1], value=newest, visible=True)
        return session, history, *self.show(session, newest, *view)

    def show(self, session: Optional[Session], index: int, layers: List[str], *thresholds: float):
        """A result of the history under the thresholds of the sliders; the model does not run.

        Returns:
            the answer as HTML, and the path of the overlay.
        """
        if not session:
            return START, None
        result = self._decide(session, index, *thresholds)
        # In a file of its own: Gradio would name it by its content, and one visitor would fetch
        # what another, with the same answer, is just writing.
        path = os.path.join(new_folder(), "answer.jpg")
        overlay = Image.fromarray(result.plot(read_to_show(session.photo), layers))
        overlay.save(path, quality=90)
        return describe(result), path

    def forget(self, photo: Optional[str], session: Optional[Session]):
        """Clear the answers when there is another image; the outputs of :meth:`ask`."""
        # A question that was quicker than this event is about the new image already.
        if session and session.photo == photo:
            return gr.skip()
        return None, gr.Radio([], value=None, visible=False), START, None

    def save(self, kind: str, session: Optional[Session], index: int, *thresholds: float) -> str:
        """Path of a new file with what is shown, for the browser to fetch; several are in a ZIP.

        Args:
            kind: as demo.py's --save names it.
        """
        if not session:
            raise refusal("Ask something first.")
        result, folder = self._decide(session, index, *thresholds), new_folder()
        # Its path is of no use to the visitor.
        result.path = os.path.basename(session.photo)
        files = AnswerFiles(folder, [kind], {session.photo: [result.expression]}, ())
        files.write(result, session.photo)
        files.close()
        names = os.listdir(folder)
        if len(names) == 1:
            return os.path.join(folder, names[0])
        stem = os.path.splitext(result.path)[0]
        return shutil.make_archive(os.path.join(new_folder(), f"{stem}_{kind}"), "zip", folder)

    @staticmethod
    def _decide(session, index, threshold, mask_threshold, no_target) -> GroundingResult:
        # The end of the last slider leaves the decision to the model.
        no_target = no_target if no_target < 1 else None
        return session.results[index].with_thresholds(threshold, mask_threshold, no_target)

    def build(self) -> gr.Blocks:
        """Layout and events."""
        with gr.Blocks(title="Ask an image", delete_cache=(3600, 86400)) as page:
            gr.Markdown(f"# Ask an image\nModel: **{html.escape(self.name)}**")
            session = gr.State(time_to_live=3600)
            with gr.Row():
                with gr.Column(min_width=320):
                    photo = gr.Image(label="Image", type="filepath", height=320, elem_id="photo")
                    photo = uploaded_file(photo)
                    expression = gr.Textbox(label="What to look for", max_length=500)
                    ask = gr.Button("Ask", variant="primary")
                    history = gr.Radio(label="Asked", visible=False, elem_id="history")
                    gallery = gr.Examples(self.examples, [photo, expression])
                with gr.Column(min_width=320):
                    answer = gr.HTML(START, elem_id="answer")
                    buttons = ["download", "fullscreen"]  # not the one that shares it elsewhere
                    overlay = gr.Image(
                        label="Answer", interactive=False, buttons=buttons, elem_id="overlay"
                    )
                    layers = gr.CheckboxGroup(LAYERS, value=["masks", "boxes"], label="Layers")
                    sliders = self._sliders()
                    self._downloads([session, history, *sliders])

            view, shown = [layers, *sliders], [answer, overlay]
            question = {
                "fn": self.ask,
                "inputs": [photo, expression, session, *view],
                "outputs": [session, history, *shown],
                "concurrency_limit": self.concurrency,
                "concurrency_id": "model",
                "show_progress_on": overlay,
            }
            asked = gr.on([ask.click, expression.submit], api_name="ask", **question)
            picked = gallery.load_input_event.then(api_visibility="private", **question)
            for event in (asked, picked):
                event.success(None, js=SHOW_ON_PHONE, api_visibility="private")
            quick = {"api_visibility": "private", "show_progress": "hidden"}
            moved = [history.input, layers.input, *(slider.input for slider in sliders)]
            inputs = [session, history, *view]
            gr.on(moved, self.show, inputs, shown, trigger_mode="always_last", **quick)
            photo.input(self.forget, [photo, session], [session, history, *shown], **quick)
        return page

    def _sliders(self) -> List[gr.Slider]:
        """Thresholds of score, mask and no target, at the values of the model."""
        test = self.predictor.cfg.MODEL.IGVG.TEST
        texts = (
            ("Score", "keep instances from here on", test.SCORE_THRESH_TEST),
            ("Mask", "keep pixels from here on", test.MASK_THRESH_TEST),
            ("No target", "“nothing” from here on; at 1 the model decides", 1),
        )
        with gr.Accordion("Thresholds (the model does not run again)"):
            return [
                gr.Slider(0.01, 1, value, step=0.01, label=label, info=info)
                for label, info, value in texts
            ]

    def _downloads(self, inputs: list) -> None:
        """Buttons whose file is written when it is asked for."""
        file = gr.File(visible="hidden")
        with gr.Row():
            for label, kind in (("Masks", "masks"), ("JSON", "json"), ("COCO", "coco")):
                button = gr.Button(f"↓ {label}", size="sm", min_width=80)
                handler = functools.partial(self.save, kind)
                saved = button.click(handler, inputs, file, api_visibility="private")
                saved.success(None, file, js=SAVE_IN_BROWSER, api_visibility="private")
