// Parses AsyncAPI documents, an array of texts on standard input, with the official parser, whose
// bundle the first argument names. Prints for each what was found, and the diagnostics, as JSON.
const { readFileSync } = require("node:fs");

globalThis.self = globalThis; // the bundle is made for browsers
const Parser = require(process.argv[2]);

async function parsed(text) {
  const { document, diagnostics } = await new Parser().parse(text);
  const found = document && {
    channels: document.allChannels().length,
    operations: document.allOperations().length,
    messages: document.allMessages().length,
  };
  const said = diagnostics.map(({ severity, code, message }) => ({ severity, code, message }));
  return { found: found ?? null, diagnostics: said };
}

const texts = JSON.parse(readFileSync(0, "utf-8"));
Promise.all(texts.map(parsed)).then((results) => console.log(JSON.stringify(results)));
