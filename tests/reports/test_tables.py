"""Tables for the terminal."""

import io

from rich.console import Console

from mobilenet_pipeline.reports.tables import Answer, print_answers


def test_the_answers_have_a_row_a_class_and_a_last_row():
    console = Console(width=100, record=True, file=io.StringIO())
    probabilities = {"cat": 0.75, "dog": 0.2, "[odd]": 0.05}
    answers = {
        "champion": Answer(probabilities, 0.95, ["cat", "[odd]"], unfamiliar=True),
        "challenger": Answer({**probabilities, "dog": 0.9}),
    }
    print_answers(answers, "photo [copy].jpg", console)
    lines = [line.split() for line in console.export_text().replace("│", " ").splitlines()]
    assert ["photo", "[copy].jpg"] in lines
    assert ["cat", "75.00%", "75.00%"] in lines
    assert ["dog", "20.00%", "90.00%"] in lines
    assert ["[odd]", "5.00%", "5.00%"] in lines
    assert ["answer", "cat", "dog"] in lines
    assert ["prediction", "set", "cat,", "[odd]", "(95", "%)", "–"] in lines
    assert ["unfamiliar", "image", "yes", "–"] in lines
