"""The nouns: Model, Target, Goal, Pass, Backend, Executable, Recipe, Measurement. Imports the standard library only."""
