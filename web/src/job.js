// A job, followed to its end.
import { $ } from "./dom.js";
import { ServiceError, get, remove } from "./service.js";

const WAITS = [300, 500, 1000, 2000]; // ms, the last for as long as it takes

/** Calls `done` with the subset's id when a job was successful. */
export function createJob(done) {
  let current = null;

  async function follow(status) {
    const { jobID } = status;
    current = jobID;
    $("job").hidden = false;
    for (let tries = 0; current === jobID; tries++) {
      show(status);
      if (!["accepted", "running"].includes(status.status)) return end(status);
      await new Promise((resolve) => setTimeout(resolve, WAITS[Math.min(tries, WAITS.length - 1)]));
      try {
        status = await get(`jobs/${jobID}`);
      } catch (error) {
        if (!(error instanceof ServiceError)) throw error;
        say(`${error.message} Trying again.`);
      }
    }
  }

  function show({ status, progress, message }) {
    const running = ["accepted", "running"].includes(status);
    $("job-progress").value = progress ?? 0;
    $("job-progress").hidden = $("job-cancel").hidden = !running;
    say(running ? `${progress ?? 0} %: ${message}` : status === "failed" ? `It failed: ${message}` : status === "dismissed" ? "Stopped." : "Done.");
  }

  function say(text) {
    if ($("job-message").textContent !== text) $("job-message").textContent = text;
  }

  function end({ status, links }) {
    const item = links.find(({ rel }) => rel === "item");
    if (status === "successful" && item) done(decodeURIComponent(item.href.split("/").at(-1)));
  }

  $("job-cancel").addEventListener("click", async () => {
    try {
      show(await remove(`jobs/${current}`));
    } catch (error) {
      if (!(error instanceof ServiceError)) throw error;
      say(error.message);
    }
  });
  return { follow };
}
