// Python in the page: code cells that run, and exercises that are checked. Nothing is loaded before a button is pressed.

import { prepareCells } from "./cells.js";
import { prepareExercises } from "./exercises.js";

prepareCells();
prepareExercises();
