"use strict";
// Between login and page: compares the gateway's audit log with the newest checkpoint that this browser has seen, by a
// consistency proof (RFC 9162, section 2.1.4.2) that is checked here. What fits goes on to the page by itself.
const KEPT = "portcullis audit log";
const main = document.querySelector("main");
const now = { origin: main.dataset.origin, size: Number(main.dataset.size), root: main.dataset.root };

function bytes(hex) {
  return Uint8Array.from(hex.match(/../g) || [], (pair) => parseInt(pair, 16));
}

async function node(left, right) {
  const all = new Uint8Array([1, ...bytes(left), ...bytes(right)]);
  const hash = new Uint8Array(await crypto.subtle.digest("SHA-256", all));
  return Array.from(hash, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

async function goesOn(old, path) {
  if (old.size === now.size) return path.length === 0 && old.root === now.root;
  let [fn, sn] = [BigInt(old.size) - 1n, BigInt(now.size) - 1n];
  const whole = (BigInt(old.size) & fn) === 0n;
  const nodes = whole ? [old.root, ...path] : path;
  if (nodes.length === 0) return false;
  while (fn & 1n) [fn, sn] = [fn >> 1n, sn >> 1n];
  let [before, after] = [nodes[0], nodes[0]];
  for (const next of nodes.slice(1)) {
    if (sn === 0n) return false;
    if (fn & 1n || fn === sn) {
      before = await node(next, before);
      after = await node(next, after);
      while (!(fn & 1n) && fn !== 0n) [fn, sn] = [fn >> 1n, sn >> 1n];
    } else {
      after = await node(after, next);
    }
    [fn, sn] = [fn >> 1n, sn >> 1n];
  }
  return sn === 0n && before === old.root && after === now.root;
}

// Why it is not the log that was seen; nothing: it is, further on.
async function differs(old) {
  if (old.origin !== now.origin) return "it is another log";
  if (now.size < old.size) return `it has ${now.size} records, and had ${old.size}`;
  const answer = await fetch(`/seen/proof?old=${old.size}&new=${now.size}`, { cache: "no-store" });
  if (!answer.ok) return `it does not prove that it goes on from ${old.size} records`;
  const proof = await answer.json();
  return (await goesOn(old, proof.path)) ? "" : `its first ${old.size} records are not those that were seen`;
}

function kept() {
  const text = localStorage.getItem(KEPT);
  if (text === null) return null;
  const old = JSON.parse(text);
  const isHash = typeof old.root === "string" && /^[0-9a-f]{64}$/.test(old.root);
  if (typeof old.origin !== "string" || !Number.isSafeInteger(old.size) || old.size < 1 || !isHash) {
    throw new Error("what was seen of it cannot be read any more");
  }
  return old;
}

function keep() {
  localStorage.setItem(KEPT, JSON.stringify(now));
  location.replace("/");
}

async function compare() {
  let why = "";
  try {
    const old = kept();
    why = old === null ? "" : await differs(old);
  } catch (error) {
    why = String(error.message || error);
  }
  if (why === "") return keep();
  document.getElementById("why").textContent = why;
  document.getElementById("forked").hidden = false;
  document.getElementById("asking").hidden = true;
  document.getElementById("anew").addEventListener("click", keep);
}

compare();
