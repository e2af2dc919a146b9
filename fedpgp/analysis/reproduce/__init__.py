"""The papers' tables: which runs each asks for, and our numbers in its cells beside the paper's."""
