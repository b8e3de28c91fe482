// OpenAI's Node client, as its README shows it: chats, pictures, turns, streams, responses.
import OpenAI from "openai";
import { json } from "node:stream/consumers";

const asked = await json(process.stdin);
const client = new OpenAI(); // OPENAI_BASE_URL, OPENAI_API_KEY

async function chats() {
  const found = {};
  const chat = { model: asked.model, max_tokens: asked.tokens };
  const question = [{ role: "user", content: asked.question }];
  let completion = await client.chat.completions.create({ ...chat, messages: question });
  found.text = completion.choices[0].message.content;
  const picture = { type: "image_url", image_url: { url: asked.picture } };
  const messages = [{ role: "user", content: [picture, { type: "text", text: asked.question }] }];
  completion = await client.chat.completions.create({ ...chat, messages, tools: [] });
  found.picture = completion.choices[0].message.content;
  found.streamed = "";
  const stream = await client.chat.completions.create({ ...chat, messages, stream: true });
  for await (const chunk of stream) found.streamed += chunk.choices[0]?.delta?.content ?? "";
  messages.push(completion.choices[0].message, { role: "user", content: asked.further });
  completion = await client.chat.completions.create({ ...chat, messages });
  found.further = completion.choices[0].message.content;
  return found;
}

async function responses() {
  const found = {};
  const respond = { model: asked.model, max_output_tokens: asked.tokens };
  let response = await client.responses.create({ ...respond, input: asked.question });
  found.text = response.output_text;
  const picture = { type: "input_image", image_url: asked.picture, detail: "auto" };
  const parts = [picture, { type: "input_text", text: asked.question }];
  const history = [{ role: "user", content: parts }];
  response = await client.responses.create({ ...respond, input: history, tools: [] });
  found.picture = response.output_text;
  const stream = client.responses.stream({ ...respond, input: history });
  found.streamed = (await stream.finalResponse()).output_text;
  history.push(...response.output, { role: "user", content: asked.further });
  response = await client.responses.create({ ...respond, input: history });
  found.further = response.output_text;
  return found;
}

async function errors() {
  const picture = { type: "image_url", image_url: { url: "data:image/png;base64,aGVsbG8=" } };
  const messages = [{ role: "user", content: [picture] }];
  const refused = (error) => [error.status, error.message];
  return [
    await client.chat.completions.create({ model: asked.model, messages }).catch(refused),
    await client.embeddings.create({ model: asked.model, input: "a" }).catch(refused),
  ];
}

const answers = { chats: await chats(), responses: await responses() };
console.log(JSON.stringify({ answers, errors: await errors() }));
