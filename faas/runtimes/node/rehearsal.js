// The handler that a stem serves one event with, of nobody, before it waits: see `rehearse` in bootstrap.js.
"use strict";
exports.handler = async (event) => event;
