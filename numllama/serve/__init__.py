"""A server for one model: a page to look at in the browser, and OpenAI's routes for programs (extra ``app``)."""
