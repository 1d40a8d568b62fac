// The viewer page. `document.body.dataset.state` is requesting, connecting, live, stalled, busy, stopped, unavailable, lost
// or off. `window.viewer` is for tests and benchmarks: `pc`, `framesDecoded()` (a promise), and `times` of the current
// attempt in milliseconds of Date.now(): offered, answered, connected, firstFrame.

const ANSWER_TIMEOUT_MS = 15_000;
const CONNECT_TIMEOUT_MS = 20_000;
const DISCONNECTED_TIMEOUT_MS = 3_000;
const STALL_TIMEOUT_MS = 5_000;
const RECOVERY_FRAMES = 10;
const STABLE_MS = 10_000;
const ICE_MAX_AGE_MS = 300_000;
const ICE_FETCH_WAIT_MS = 300;
const STOPPED_RETRY_S = 10;

// The codes of this page for the reasons why the device ended a session. Others: closed.
const CODES = {
  stopped: "stopped",
  shutdown: "restarting",
  connect_timeout: "no_path",
  relay_lost: "relay_lost",
  replaced: "replaced",
};

const byId = (id) => document.getElementById(id);
const video = byId("video");
const button = byId("button");
const sleep = (ms) => new Promise((done) => setTimeout(done, ms));

const qualityButton = byId("quality");
const viewer = { pc: null, session: null, times: {}, framesDecoded };
let quality = "hd";
window.viewer = viewer;

/** Why an attempt ended: a code of the contract, or one of this page. */
class ViewError extends Error {
  constructor(code, message = "", retryAfterS = null) {
    super(message);
    this.code = code;
    this.retryAfterS = retryAfterS;
  }
}

// Texts.

const NO_H264 = "It cannot decode H.264. Chrome, Edge and Safari can; Firefox needs its OpenH264 plugin.";

/** Describe an error to the user. Returns the state, a label, a headline and a detail. */
function describe(error, wasLive) {
  switch (error.code) {
    case "busy":
      return ["busy", "Waiting", "The viewer limit is reached", sentence(error.message)];
    case "stopped":
      return ["stopped", "Stopped", "The camera is stopped", "The video starts automatically when the camera is started again."];
    case "camera_unavailable":
      return ["unavailable", "No video", "The camera is not available", sentence(error.message)];
    case "no_common_codec":
      return ["unavailable", "No video", "This browser cannot show the camera", NO_H264];
    case "forbidden":
    case "unauthorized":
      return ["unavailable", "Not allowed", "You do not have permission to watch this camera", sentence(error.message)];
    case "unreachable":
      return lost(wasLive, "The server of this page does not answer.");
    case "timeout":
      return lost(wasLive, "The camera does not answer. It may be off or offline.");
    case "restarting":
      return lost(wasLive, "The camera is restarting.");
    case "relay_lost":
      return lost(wasLive, "The relay server ended the connection.");
    case "replaced":
      return ["busy", "Waiting", "Another connection took this place", ""];
    case "no_path":
      return lost(wasLive, "The camera was found, but its video does not arrive.");
    default:
      return lost(wasLive, sentence(error.message));
  }
}

function lost(wasLive, detail) {
  return ["lost", "Retrying", wasLive ? "The connection was lost" : "No connection to the camera", detail];
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
  byId("retry").textContent = "";
  byId("announcement").textContent = `${headline} ${detail}`.trim();
  if (state === "off" || state === "stopped") video.srcObject = null;
}

// One attempt: offer, answer, connection.

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
    // The offer that follows reports the error.
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
    throw new ViewError(reply.error.code, reply.error.message, reply.error.retry_after_s);
  } catch (error) {
    throw error instanceof ViewError ? error : new ViewError("unreachable");
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

/** Watch until the session ends. Always throws a ViewError. Calls `progress` with "connecting", "live" and "stalled". */
async function watchOnce(signal, progress) {
  if (!window.RTCPeerConnection) throw new ViewError("no_common_codec");
  const session = (viewer.session = newId());
  const times = (viewer.times = {});
  const pc = (viewer.pc = new RTCPeerConnection());
  const closed = new AbortController();
  let fail;
  const ended = new Promise((_, reject) => (fail = reject));
  let sessionOpen = false;
  let events;

  function end(error) {
    if (closed.signal.aborted) return;
    closed.abort();
    events?.close();
    pc.close();
    if (sessionOpen) {
      const body = new Blob([JSON.stringify({ session })], { type: "application/json" });
      navigator.sendBeacon("/api/stop-webrtc", body);
    }
    fail(error);
  }
  const whileOpen = (task) => (...args) => closed.signal.aborted || task(...args);
  const after = (ms, task) => setTimeout(whileOpen(task), ms);
  // The device notifies the page when its camera stalls. The connection stays open, and the video resumes on it.
  let stalled = false;
  let lastFrameAt = performance.now();
  const live = whileOpen(() => stalled || progress("live"));
  signal.addEventListener("abort", () => end(new ViewError("off")), { signal: closed.signal });

  // Candidates of the device, which may arrive before its answer.
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
      sessionOpen = false;
      const { reason } = JSON.parse(data);
      // The credentials may have expired: the next offer gets new ones.
      if (reason === "relay_lost") ice.at = -Infinity;
      end(new ViewError(CODES[reason] ?? "closed"));
    }));
    events.addEventListener("camera", whileOpen(({ data }) => {
      const { state, message } = JSON.parse(data);
      stalled = state === "stalled";
      lastFrameAt = performance.now();
      progress(state, message ?? "");
    }));
    // EventSource reconnects by itself, except after an HTTP error.
    events.addEventListener("error", whileOpen(() => events.readyState === EventSource.CLOSED && after(2000, listen)));
  }
  listen();

  // Send the page's candidates in order.
  let sent = Promise.resolve();
  pc.onicecandidate = ({ candidate }) => {
    if (candidate?.candidate === "") return;
    const body = { session, candidate: candidate?.candidate ?? null, sdpMid: candidate?.sdpMid ?? null };
    sent = sent.then(() => post("/api/candidate", body, closed.signal)).catch(() => {});
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
      after(DISCONNECTED_TIMEOUT_MS, () => pc.connectionState === was && end(new ViewError("closed")));
    } else if (was === "failed" || was === "closed") {
      end(new ViewError(times.connected ? "closed" : "no_path"));
    }
  });

  let watching = false;
  async function watchFrames() {
    if (watching) return;
    watching = true;
    let last = 0;
    lastFrameAt = performance.now();
    while (!closed.signal.aborted) {
      const frames = await framesDecoded();
      // New frames end a stall even if the notification was lost.
      if (frames > last + RECOVERY_FRAMES) stalled = false;
      if (frames > 0) live();
      // A page in the background may get no frames.
      if (frames > last || stalled || document.hidden) lastFrameAt = performance.now();
      else if (performance.now() - lastFrameAt > STALL_TIMEOUT_MS) end(new ViewError("no_path"));
      last = frames;
      await sleep(1000);
    }
  }

  async function connect() {
    pc.addTransceiver("video", { direction: "recvonly" });
    const [offer] = await Promise.all([pc.createOffer(), Promise.race([freshIce(), sleep(ICE_FETCH_WAIT_MS)])]);
    if (!/ H264\/90000/i.test(offer.sdp)) throw new ViewError("no_common_codec");
    pc.setConfiguration({ iceServers: ice.servers });
    await pc.setLocalDescription(offer);
    after(ANSWER_TIMEOUT_MS, () => times.answered || end(new ViewError("timeout")));
    times.offered = Date.now();
    sessionOpen = true;
    const reply = await post("/api/start-webrtc", { type: "offer", sdp: offer.sdp, session, quality }, closed.signal).catch((error) => {
      sessionOpen = error.code === "unreachable";
      throw error;
    });
    times.answered = Date.now();
    progress("connecting");
    after(CONNECT_TIMEOUT_MS, () => times.connected || end(new ViewError("no_path")));
    await pc.setRemoteDescription({ type: "answer", sdp: reply.webrtc_answer });
    early.splice(0).forEach(addCandidate);
  }
  connect().catch((error) => end(error instanceof ViewError ? error : new ViewError("internal", error.message)));
  await ended;
}

function play() {
  video.play().catch((error) => {
    if (error.name === "NotAllowedError") byId("label").textContent = "Tap the video to play it";
  });
}

// Retry until the user stops watching.

function retryDelayS(error, failures) {
  if (error.retryAfterS !== null) return error.retryAfterS + Math.random();
  if (error.code === "stopped") return STOPPED_RETRY_S * (0.8 + 0.4 * Math.random());
  return 1 + Math.random() * (Math.min(15, 2 ** failures) - 1);
}

/** Wait and show the remaining seconds. In the state "lost", the browser's "online" event ends the wait early. */
async function pause(seconds, state, signal) {
  const until = performance.now() + seconds * 1000;
  let online = false;
  const onOnline = () => (online = true);
  if (state === "lost") addEventListener("online", onOnline);
  while (!signal.aborted && !online && performance.now() < until) {
    const left = Math.ceil((until - performance.now()) / 1000);
    if (state !== "stopped") byId("retry").textContent = `Retrying in ${left} s`;
    await sleep(Math.min(250, until - performance.now()));
  }
  removeEventListener("online", onOnline);
  byId("retry").textContent = state === "stopped" ? "" : "Retrying";
}

async function watch(signal) {
  show("requesting", "Contacting the camera", "Contacting the camera");
  let failures = 0;
  while (!signal.aborted) {
    let liveAt = null;
    const progress = (state, message = "") => {
      if (state === "connecting") show("connecting", "Connecting", "Connecting");
      else if (state === "stalled") show("stalled", "The picture is frozen", "The camera has stalled", `${sentence(message)} It is being restarted.`);
      else if (document.body.dataset.state !== "live") {
        liveAt ??= performance.now();
        show("live", "Live");
      }
    };
    const error = await watchOnce(signal, progress).catch((caught) => caught);
    if (signal.aborted) return;
    if (!(error instanceof ViewError)) throw error;
    if (liveAt !== null && performance.now() - liveAt > STABLE_MS) failures = 0;
    const description = describe(error, liveAt !== null);
    show(...description);
    await pause(retryDelayS(error, failures), description[0], signal);
    failures += 1;
  }
}

let run = null;

function startWatching() {
  run = new AbortController();
  button.textContent = "Stop watching";
  watch(run.signal);
}

function stopWatching() {
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
  } catch (error) {
    byId("label").textContent = sentence(error.message) || "The quality could not be changed.";
  }
  qualityButton.disabled = false;
});
button.addEventListener("click", () => (run ? stopWatching() : startWatching()));
video.addEventListener("click", () => {
  const live = () => document.body.dataset.state === "live" && show("live", "Live");
  video.play().then(live, () => {});
});
addEventListener("pagehide", () => run?.abort());
addEventListener("pageshow", ({ persisted }) => persisted && run && startWatching());

freshIce();
startWatching();
