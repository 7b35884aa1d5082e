// Asks by OpenAI's JavaScript client, in every way that it knows: cases in, answers out (JSON).
//
// node ask.mjs FOLDER_OF_THE_PACKAGE CASES
// Each case is asked until the model wants no client tool any more; each tool says "local".

import { createRequire } from "node:module";

const OpenAI = createRequire(`${process.argv[2]}/`)("openai");

const answerOf = ({ choices, usage, ...rest }) => ({ ...rest, choices, usage });

async function create(client, { stream_options, ...body }) {
  return answerOf(await client.chat.completions.create(body));
}

async function createStream(client, body) {
  const chunks = [];
  for await (const chunk of await client.chat.completions.create({ ...body, stream: true })) {
    chunks.push(chunk);
  }
  return joined(chunks);
}

async function helper(client, body) {
  const stream = client.chat.completions.stream(body);
  for await (const _ of stream);
  return answerOf(await stream.finalChatCompletion());
}

// The runners call the client's tools and ask again by themselves: the last answer is all.
async function runTools(client, { stream_options, ...body }, stream) {
  const tools = (body.tools ?? []).map((tool) => ({
    ...tool,
    function: { ...tool.function, parse: JSON.parse, function: () => "local" },
  }));
  const runner = client.chat.completions.runTools({ ...body, tools, stream });
  return answerOf(await runner.finalChatCompletion());
}

function joined(chunks) {
  const choices = [];
  let usage;
  for (const chunk of chunks) {
    usage = chunk.usage ?? usage;
    for (const { index, delta, finish_reason } of chunk.choices) {
      const choice = (choices[index] ??= { index, message: { tool_calls: [] } });
      choice.finish_reason = finish_reason ?? choice.finish_reason;
      for (const [key, value] of Object.entries(delta)) {
        if (value === null) continue;
        if (key === "tool_calls") value.forEach((made) => joinCall(choice.message.tool_calls, made));
        else if (key === "role") choice.message.role = value;
        else choice.message[key] = (choice.message[key] ?? "") + value;
      }
    }
  }
  return { ...chunks[0], choices, usage };
}

function joinCall(calls, delta) {
  if (delta.index === calls.length) calls.push({ ...delta, function: { ...delta.function } });
  else calls[delta.index].function.arguments += delta.function.arguments;
}

const WAYS = {
  create,
  "create(stream)": createStream,
  "stream()": helper,
  "runTools": (client, body) => runTools(client, body, false),
  "runTools(stream)": (client, body) => runTools(client, body, true),
};

async function converse(client, ask, body) {
  const turns = [];
  let messages = body.messages;
  try {
    while (!turns.length || turns.at(-1).choices[0].message.tool_calls?.length) {
      turns.push(await ask(client, { ...body, messages }));
      const { parsed, ...message } = turns.at(-1).choices[0].message;
      const calls = message.tool_calls ?? [];
      const results = calls.map(({ id }) => ({ role: "tool", tool_call_id: id, content: "local" }));
      messages = [...messages, message, ...results];
    }
  } catch (error) {
    return {
      turns,
      error: {
        name: error.constructor.name,
        is_api_error: error instanceof OpenAI.APIError,
        status: error.status ?? null,
        message: String(error.message),
      },
    };
  }
  return { turns };
}

const said = {};
for (const [way, ask] of Object.entries(WAYS)) {
  said[way] = {};
  for (const { name, base_url, body } of JSON.parse(process.argv[3])) {
    if (way.startsWith("runTools") && !body.tools) continue;
    const client = new OpenAI({ baseURL: base_url, apiKey: "none", maxRetries: 0, timeout: 20000 });
    said[way][name] = await converse(client, ask, body);
  }
}
process.stdout.write(JSON.stringify(said));
