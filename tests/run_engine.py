"""Run statements in one session of whichever chdb this Python has: ``python run_engine.py <folder> < statements.json``.

Standard library and chdb only: an old engine's environment holds nothing else. Prints a list of ``[text, error]``.
"""

import json
import sys

from chdb.session import Session

if __name__ == "__main__":
    session = Session(sys.argv[1])
    answers = []
    for statement in json.load(sys.stdin):
        try:
            answers.append([str(session.query(statement, "TSVWithNames")), ""])
        except Exception as error:
            answers.append(["", str(error)])
    json.dump(answers, sys.stdout)
