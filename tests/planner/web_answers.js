// Run by test_web_arithmetic.py: node web_answers.js SCRIPT INPUT, where INPUT is JSON of data and questions.
// Prints what the page's script answers, as JSON.
"use strict";
const fs = require("node:fs");

const [script, input] = process.argv.slice(2).map((file) => fs.readFileSync(file, "utf8"));
const { planner, sizes, notes } = new Function(`${script}\nreturn { planner, sizes, notes };`)();
const { data, questions, contexts, texts, shown } = JSON.parse(input);
const models = new Map(data.models.map((model) => [model.name, model]));

function parsed(parse, text) {
  try {
    return parse(text, "size");
  } catch (error) {
    return null;
  }
}

const plans = questions.map(({ model, question }) => {
  const plan = planner.makePlan(data, models.get(model), question);
  return { ...plan, notes: notes.on(data, models.get(model), question, [plan]) };
});
console.log(
  JSON.stringify({
    plans,
    contexts: contexts.map((longest) => planner.contextsUpTo(data, longest)),
    bytes: texts.map((text) => parsed(sizes.parseBytes, text)),
    tokens: texts.map((text) => parsed(sizes.parseTokens, text)),
    shown: shown.map(sizes.inGbAndGib),
  }),
);
