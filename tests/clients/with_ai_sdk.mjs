// The AI SDK, as its documentation shows it: two providers, over both protocols.
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, streamText } from "ai";
import { json } from "node:stream/consumers";

const asked = await json(process.stdin);
const connection = { baseURL: process.env.OPENAI_BASE_URL, apiKey: process.env.OPENAI_API_KEY };
const openai = createOpenAI(connection);
const compatible = createOpenAICompatible({ name: "cmoe", ...connection });

async function converse(model, more = {}) {
  const settings = { model, maxOutputTokens: asked.tokens, maxRetries: 0, ...more };
  const picture = { type: "image", image: asked.picture };
  const shown = { role: "user", content: [picture, { type: "text", text: asked.question }] };
  const found = {};
  found.text = (await generateText({ ...settings, prompt: asked.question })).text;
  const answer = await generateText({ ...settings, messages: [shown], tools: {} });
  found.picture = answer.text;
  found.streamed = "";
  const stream = streamText({ ...settings, messages: [shown] });
  for await (const text of stream.textStream) found.streamed += text;
  const messages = [shown, ...answer.response.messages, { role: "user", content: asked.further }];
  found.further = (await generateText({ ...settings, messages })).text;
  return found;
}

async function errors() {
  const broken = { type: "image", image: "data:image/png;base64,aGVsbG8=" };
  const messages = [{ role: "user", content: [broken] }];
  const asking = generateText({ model: compatible(asked.model), messages, maxRetries: 0 });
  return [await asking.catch((error) => [error.statusCode, error.message])];
}

const answers = {
  chats: await converse(openai.chat(asked.model)),
  compatible: await converse(compatible(asked.model)),
  // The service keeps no answer: the conversation is sent whole each time.
  responses: await converse(openai(asked.model), { providerOptions: { openai: { store: false } } }),
};
console.log(JSON.stringify({ answers, errors: await errors() }));
