// The unmodified npm client against a gateway: one line of JSON for each thing that happens to it.
// Arguments: the folder that holds node_modules, the gateway's address, the token, the file of the device's key, how long to
// wait for a person to let it in (milliseconds; 0: not at all).
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const [folder, url, token, deviceIdentityPath, patience] = process.argv.slice(2);
const require = createRequire(pathToFileURL(`${folder}/x.js`));
// Before Node.js 22 there is no WebSocket of its own: the client asks for the package `ws` then.
globalThis.WebSocket ??= require("ws");
const { OpenClawClient } = require("openclaw-node");
const say = (what, more = {}) => process.stdout.write(`${JSON.stringify({ what, ...more })}\n`);

const client = new OpenClawClient({
  url,
  token,
  deviceIdentityPath,
  scopes: ["operator.read"],
  autoReconnect: Number(patience) > 0,
  reconnectIntervalMs: 200,
});
const failed = (error) => say("error", { message: String(error?.message ?? error) });
client.on("error", failed);
client.on("pairingRequired", ({ reason, requestId }) => say("pairingRequired", { reason, requestId }));
const connected = new Promise((resolve) => client.on("connected", resolve));
const first = client.connect().then(() => true, (error) => (failed(error), false));
let here = await first;
if (!here && Number(patience) > 0) {
  const late = new Promise((resolve) => setTimeout(() => resolve(false), Number(patience)));
  here = await Promise.race([connected.then(() => true), late]);
}
if (here) {
  say("connected", { methods: client.availableMethods.length, knowsHealth: client.hasMethod("health") });
  say("health", { answer: await client.health() });
  const asks = {
    sessions: () => client.sessions.list(),
    agents: () => client.agents.list(),
    channels: () => client.channels.status(),
    chat: async () => {
      for await (const { type, text } of client.chat("hello")) {
        if (type === "error") throw new Error(text);
      }
    },
    wait: () => client.agentWait("no-such-run"),
    config: () => client.config.get(),
  };
  for (const [what, ask] of Object.entries(asks)) {
    try {
      say(what, { answer: await ask() });
    } catch (error) {
      say(what, { refused: String(error?.message ?? error) });
    }
  }
}
await client.disconnect();
say("end", { here });
process.exit(here ? 0 : 1);
