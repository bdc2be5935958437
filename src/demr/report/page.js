"use strict";

function text(seconds) {
  const tenths = Math.round(Math.max(seconds, 0) * 10);
  const minutes = Math.floor(tenths / 600);
  const rest = ((tenths % 600) / 10).toFixed(1).padStart(4, "0");
  if (minutes < 60) return minutes + ":" + rest;
  return Math.floor(minutes / 60) + ":" + String(minutes % 60).padStart(2, "0") + ":" + rest;
}

function start(part) {
  const video = part.querySelector("video");
  const clock = part.querySelector(".now b");
  const now = part.querySelector(".now span");
  const heads = [...part.querySelectorAll(".plot .head")];
  const { duration, queries } = JSON.parse(part.querySelector("script").textContent);
  let stopAt = Infinity;

  function play(start, end, card) {
    stopAt = end;
    video.currentTime = Math.max(start, 0);
    video.play().catch(() => {});
    for (const other of document.querySelectorAll(".card.playing")) other.classList.remove("playing");
    card.classList.add("playing");
    now.textContent = queries[card.dataset.index];
  }

  for (const card of part.querySelectorAll(".card")) {
    card.addEventListener("click", (event) => {
      const moment = event.target.closest("[data-start]");
      if (moment) return play(Number(moment.dataset.start), Number(moment.dataset.end), card);
      const plot = event.target.closest(".plot");
      if (!plot) return;
      const box = plot.getBoundingClientRect();
      const share = Math.min(Math.max((event.clientX - box.left) / box.width, 0), 1);
      play(share * duration, Infinity, card);
    });
  }

  function follow() {
    const share = duration > 0 ? Math.min(video.currentTime / duration, 1) * 100 + "%" : "0%";
    for (const head of heads) {
      head.setAttribute("x1", share);
      head.setAttribute("x2", share);
    }
    clock.textContent = text(video.currentTime) + " / " + text(duration);
    if (video.currentTime >= stopAt) {
      stopAt = Infinity;
      video.pause();
    }
    if (!video.paused) requestAnimationFrame(follow);
  }
  video.addEventListener("play", () => {
    for (const other of document.querySelectorAll("video")) if (other !== video) other.pause();
    follow();
  });
  video.addEventListener("seeked", follow);
  video.addEventListener("timeupdate", follow);
  video.addEventListener("error", () => {
    video.hidden = true;
    part.querySelector(".broken").hidden = false;
  });
}

for (const part of document.querySelectorAll(".part")) start(part);
