// What is asked of the service. The page lies at …/map, the API around it.

const base = new URL("./", document.baseURI).href;

export const url = (path) => new URL(path, base).href;

/** An error whose message can be shown: what the service said was wrong. */
export class ServiceError extends Error {}

async function ask(path, options) {
  let reply;
  try {
    reply = await fetch(url(path), options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServiceError("The service does not answer.");
  }
  if (reply.ok) return reply.json();
  let reason = `${reply.status} ${reply.statusText}`;
  try {
    reason = (await reply.json()).detail ?? reason;
  } catch {
    // not a problem document: the status has to do
  }
  throw new ServiceError(reason[0].toUpperCase() + reason.slice(1));
}

export const get = (path, query = {}, options = {}) => {
  const given = Object.entries(query).filter(([, value]) => value !== undefined && value !== "");
  const text = new URLSearchParams(given).toString();
  return ask(text ? `${path}?${text}` : path, options);
};

export const post = (path, body) =>
  ask(path, {
    method: "POST",
    headers: { "Content-Type": "application/json", Prefer: "respond-async" },
    body: JSON.stringify(body),
  });

export const remove = (path) => ask(path, { method: "DELETE" });

/** A file of a subset at this page's origin, whatever address the service gives for itself. */
export const local = (href) => url(href.slice(href.indexOf("/files/") + 1));
