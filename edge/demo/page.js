// The viewer page. `document.body.dataset.state` is asking, connecting, live, stalled, busy, stopped, unavailable, lost or
// off. `window.viewer` is for tests and benchmarks: `pc`, `framesDecoded()` (a promise), and `times`, in Date.now()'s
// milliseconds, of the present attempt: asked, answered, connected, firstFrame.

const ASK_LIMIT_MS = 15_000;
const CONNECT_LIMIT_MS = 20_000;
const DISCONNECTED_LIMIT_MS = 3_000;
const STALL_LIMIT_MS = 5_000;
const STALL_FRAMES = 10;
const STEADY_MS = 10_000;
const ICE_MAX_AGE_MS = 300_000;
const ICE_PATIENCE_MS = 300;
const STOPPED_CHECK_S = 10;

const byId = (id) => document.getElementById(id);
const video = byId("video");
const button = byId("button");
const sleep = (ms) => new Promise((done) => setTimeout(done, ms));

const qualityButton = byId("quality");
const viewer = { pc: null, session: null, times: {}, framesDecoded };
let quality = "hd";
window.viewer = viewer;

/** Why an attempt ended: a code of the contract, or one of ours. */
class Trouble extends Error {
  constructor(code, message = "", retryAfterS = null) {
    super(message);
    this.code = code;
    this.retryAfterS = retryAfterS;
  }
}

// Words.

const NO_H264 = "Its WebRTC has no H.264. Chrome, Edge and Safari have it; Firefox has it once its OpenH264 plugin is there.";

/** What a person is told of a trouble: the state, a label, a headline and what more there is to say. */
function told(trouble, wasLive) {
  switch (trouble.code) {
    case "busy":
      return ["busy", "Waiting for a place", "All places are taken", sentence(trouble.message)];
    case "stopped":
      return ["stopped", "Stopped", "The camera is stopped", "The picture comes by itself when the camera is started again."];
    case "camera_unavailable":
      return ["unavailable", "No picture", "The camera is not available", sentence(trouble.message)];
    case "no_common_codec":
      return ["unavailable", "No picture", "This browser cannot show the camera", NO_H264];
    case "forbidden":
    case "unauthorized":
      return ["unavailable", "Not allowed", "You may not watch this camera", sentence(trouble.message)];
    case "unreachable":
      return lost(wasLive, "The service behind this page does not answer.");
    case "timeout":
      return lost(wasLive, "The camera does not answer. It may be off, or without a network.");
    case "restarting":
      return lost(wasLive, "The camera is starting again.");
    case "no_path":
      return lost(wasLive, "The camera was found, but its video does not arrive.");
    default:
      return lost(wasLive, sentence(trouble.message));
  }
}

function lost(wasLive, detail) {
  return ["lost", "Trying again", wasLive ? "The connection was lost" : "No connection to the camera", detail];
}

function sentence(text) {
  const trimmed = text.trim();
  if (!trimmed) return "";
  return trimmed[0].toUpperCase() + trimmed.slice(1) + (/[.!?]$/.test(trimmed) ? "" : ".");
}

function show(state, label, headline = "", detail = "") {
  document.body.dataset.state = state;
  byId("label").textContent = label;
  byId("headline").textContent = headline;
  byId("detail").textContent = detail;
  byId("next").textContent = "";
  byId("spoken").textContent = `${headline} ${detail}`.trim();
  if (state === "off" || state === "stopped") video.srcObject = null;
}

// One attempt: an offer, its answer and the connection.

let ice = { servers: [], at: -Infinity };
let iceFetch = null;

function freshIce() {
  if (performance.now() - ice.at < ICE_MAX_AGE_MS) return null;
  iceFetch ??= fetchIce().finally(() => (iceFetch = null));
  return iceFetch;
}

async function fetchIce() {
  try {
    const response = await fetch("/api/turn-credentials");
    if (response.ok) ice = { servers: await response.json(), at: performance.now() };
  } catch {
    // The offer that follows tells it better.
  }
}

function newId() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

async function post(path, body, signal) {
  let response;
  try {
    const headers = { "Content-Type": "application/json" };
    response = await fetch(path, { method: "POST", headers, body: JSON.stringify(body), signal });
    if (response.status === 204) return null;
    const reply = await response.json();
    if (response.ok) return reply;
    throw new Trouble(reply.error.code, reply.error.message, reply.error.retry_after_s);
  } catch (error) {
    throw error instanceof Trouble ? error : new Trouble("unreachable");
  }
}

async function framesDecoded() {
  let frames = 0;
  if (viewer.pc === null) return frames;
  for (const report of (await viewer.pc.getStats()).values()) {
    if (report.type === "inbound-rtp" && report.kind === "video") frames += report.framesDecoded ?? 0;
  }
  return frames;
}

/** Watch until it ends; always throws a Trouble. `progress` is told "connecting" and "live", once each. */
async function watchOnce(signal, progress) {
  if (!window.RTCPeerConnection) throw new Trouble("no_common_codec");
  const session = (viewer.session = newId());
  const times = (viewer.times = {});
  const pc = (viewer.pc = new RTCPeerConnection());
  const over = new AbortController();
  let fail;
  const ended = new Promise((_, reject) => (fail = reject));
  let toBeStopped = false;
  let events;

  function end(trouble) {
    if (over.signal.aborted) return;
    over.abort();
    events?.close();
    pc.close();
    if (toBeStopped) {
      const body = new Blob([JSON.stringify({ session })], { type: "application/json" });
      navigator.sendBeacon("/api/stop-webrtc", body);
    }
    fail(trouble);
  }
  const whileOpen = (task) => (...given) => over.signal.aborted || task(...given);
  const after = (ms, task) => setTimeout(whileOpen(task), ms);
  // The device says when its camera stalls: the connection is kept, and the picture comes back on it.
  let stalled = false;
  let movedAt = performance.now();
  const live = whileOpen(() => stalled || progress("live"));
  signal.addEventListener("abort", () => end(new Trouble("off")), { signal: over.signal });

  // The device's candidates, which may come before its answer.
  const early = [];
  const addCandidate = (candidate) => pc.addIceCandidate(candidate).catch(() => {});
  function listen() {
    events = new EventSource(`/api/session-events/${session}`);
    events.addEventListener("candidate", whileOpen(({ data }) => {
      const { candidate, sdpMid } = JSON.parse(data);
      const found = { candidate: candidate ?? "", sdpMid: sdpMid ?? "0" };
      if (pc.remoteDescription) addCandidate(found);
      else early.push(found);
    }));
    events.addEventListener("closed", whileOpen(({ data }) => {
      toBeStopped = false;
      const { reason } = JSON.parse(data);
      end(new Trouble({ stopped: "stopped", shutdown: "restarting", connect_timeout: "no_path" }[reason] ?? "closed"));
    }));
    events.addEventListener("camera", whileOpen(({ data }) => {
      const { state, message } = JSON.parse(data);
      stalled = state === "stalled";
      movedAt = performance.now();
      progress(state, message ?? "");
    }));
    // It connects again by itself, but not where it was refused.
    events.addEventListener("error", whileOpen(() => events.readyState === EventSource.CLOSED && after(2000, listen)));
  }
  listen();

  // Ours, in their order.
  let sent = Promise.resolve();
  pc.onicecandidate = ({ candidate }) => {
    if (candidate?.candidate === "") return;
    const body = { session, candidate: candidate?.candidate ?? null, sdpMid: candidate?.sdpMid ?? null };
    sent = sent.then(() => post("/api/candidate", body, over.signal)).catch(() => {});
  };

  pc.ontrack = whileOpen(({ track }) => {
    video.srcObject = new MediaStream([track]);
    play();
    video.requestVideoFrameCallback?.(whileOpen(() => {
      times.firstFrame = Date.now();
      live();
    }));
  });

  pc.onconnectionstatechange = whileOpen(() => {
    const was = pc.connectionState;
    if (was === "connected") {
      times.connected ??= Date.now();
      watchFrames();
    } else if (was === "disconnected") {
      after(DISCONNECTED_LIMIT_MS, () => pc.connectionState === was && end(new Trouble("closed")));
    } else if (was === "failed" || was === "closed") {
      end(new Trouble(times.connected ? "closed" : "no_path"));
    }
  });

  let watching = false;
  async function watchFrames() {
    if (watching) return;
    watching = true;
    let last = 0;
    movedAt = performance.now();
    while (!over.signal.aborted) {
      const frames = await framesDecoded();
      // Pictures that move are the truth, whatever message was lost.
      if (frames > last + STALL_FRAMES) stalled = false;
      if (frames > 0) live();
      // A page in the background may be given no frames.
      if (frames > last || stalled || document.hidden) movedAt = performance.now();
      else if (performance.now() - movedAt > STALL_LIMIT_MS) end(new Trouble("no_path"));
      last = frames;
      await sleep(1000);
    }
  }

  async function connect() {
    pc.addTransceiver("video", { direction: "recvonly" });
    const [offer] = await Promise.all([pc.createOffer(), Promise.race([freshIce(), sleep(ICE_PATIENCE_MS)])]);
    if (!/ H264\/90000/i.test(offer.sdp)) throw new Trouble("no_common_codec");
    pc.setConfiguration({ iceServers: ice.servers });
    await pc.setLocalDescription(offer);
    after(ASK_LIMIT_MS, () => times.answered || end(new Trouble("timeout")));
    times.asked = Date.now();
    toBeStopped = true;
    const reply = await post("/api/start-webrtc", { type: "offer", sdp: offer.sdp, session, quality }, over.signal).catch((trouble) => {
      toBeStopped = trouble.code === "unreachable";
      throw trouble;
    });
    times.answered = Date.now();
    progress("connecting");
    after(CONNECT_LIMIT_MS, () => times.connected || end(new Trouble("no_path")));
    await pc.setRemoteDescription({ type: "answer", sdp: reply.webrtc_answer });
    early.splice(0).forEach(addCandidate);
  }
  connect().catch((error) => end(error instanceof Trouble ? error : new Trouble("internal", error.message)));
  await ended;
}

function play() {
  video.play().catch((error) => {
    if (error.name === "NotAllowedError") byId("label").textContent = "Tap the picture to play it";
  });
}

// Again and again, until the viewer has had enough.

function waitS(trouble, failures) {
  if (trouble.retryAfterS !== null) return trouble.retryAfterS + Math.random();
  if (trouble.code === "stopped") return STOPPED_CHECK_S * (0.8 + 0.4 * Math.random());
  return 1 + Math.random() * (Math.min(15, 2 ** failures) - 1);
}

/** Wait, with the seconds that are left on the page; a network that comes back ends it early. */
async function pause(seconds, state, signal) {
  const until = performance.now() + seconds * 1000;
  let hurried = false;
  const hurry = () => (hurried = true);
  if (state === "lost") addEventListener("online", hurry);
  while (!signal.aborted && !hurried && performance.now() < until) {
    const left = Math.ceil((until - performance.now()) / 1000);
    if (state !== "stopped") byId("next").textContent = `Trying again in ${left} s`;
    await sleep(Math.min(250, until - performance.now()));
  }
  removeEventListener("online", hurry);
  byId("next").textContent = state === "stopped" ? "" : "Trying again";
}

async function watch(signal) {
  show("asking", "Asking the camera", "Asking the camera");
  let failures = 0;
  while (!signal.aborted) {
    let liveAt = null;
    const progress = (state, message = "") => {
      if (state === "connecting") show("connecting", "Connecting", "Connecting");
      else if (state === "stalled") show("stalled", "The picture stands still", "The camera has stalled", `${sentence(message)} It is being started again.`);
      else if (document.body.dataset.state !== "live") {
        liveAt ??= performance.now();
        show("live", "Live");
      }
    };
    const trouble = await watchOnce(signal, progress).catch((error) => error);
    if (signal.aborted) return;
    if (!(trouble instanceof Trouble)) throw trouble;
    if (liveAt !== null && performance.now() - liveAt > STEADY_MS) failures = 0;
    const words = told(trouble, liveAt !== null);
    show(...words);
    await pause(waitS(trouble, failures), words[0], signal);
    failures += 1;
  }
}

let run = null;

function begin() {
  run = new AbortController();
  button.textContent = "Stop watching";
  watch(run.signal);
}

function cease() {
  run?.abort();
  run = null;
  viewer.pc = null;
  button.textContent = "Watch";
  show("off", "Not watching", "Not watching");
}

qualityButton.addEventListener("click", async () => {
  const other = quality === "hd" ? "sd" : "hd";
  qualityButton.disabled = true;
  try {
    await post("/api/quality", { session: viewer.session, quality: other });
    quality = other;
    qualityButton.textContent = quality.toUpperCase();
    byId("label").textContent = "Live";
  } catch (trouble) {
    byId("label").textContent = sentence(trouble.message) || "The quality could not be changed.";
  }
  qualityButton.disabled = false;
});
button.addEventListener("click", () => (run ? cease() : begin()));
video.addEventListener("click", () => {
  const live = () => document.body.dataset.state === "live" && show("live", "Live");
  video.play().then(live, () => {});
});
addEventListener("pagehide", () => run?.abort());
addEventListener("pageshow", ({ persisted }) => persisted && run && begin());

freshIce();
begin();
