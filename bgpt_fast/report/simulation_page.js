"use strict";
const { columns, figures, programs } = JSON.parse(document.getElementById("data").textContent);
const free = figures.free_running, forced = figures.teacher_forced;
const percent = (share) => share === null || share === undefined ? "–" : (100 * share).toFixed(3) + " %";

function add(parent, tag, text, kind) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (kind) made.className = kind;
  parent.append(made);
  return made;
}

const tip = document.getElementById("tip");
function hover(cell, text) {
  cell.tabIndex = 0;
  const show = (x, y) => {
    tip.textContent = text();
    tip.hidden = false;
    tip.style.left = Math.min(x + 14, innerWidth - tip.offsetWidth - 8) + "px";
    tip.style.top = Math.min(y + 14, innerHeight - tip.offsetHeight - 8) + "px";
  };
  cell.addEventListener("mousemove", (event) => show(event.clientX, event.clientY));
  cell.addEventListener("focus", () => { const box = cell.getBoundingClientRect(); show(box.left, box.bottom); });
  for (const event of ["mouseleave", "blur"]) cell.addEventListener(event, () => { tip.hidden = true; });
}

function card(value, name) {
  const made = add(document.getElementById("cards"), "div");
  add(made, "b", value);
  add(made, "small", name);
}
card(percent(free.accuracy), "state bytes right, free running");
card(percent(forced.accuracy), "teacher-forced");
card(percent(free.copy_baseline), "by copying alone");
card(free.programs_right + " of " + free.programs, "programs right to the last byte");
card(Math.round(figures.states_per_second).toLocaleString("en"), "states a second, free running");
card(Math.round(figures.teacher_forced_states_per_second).toLocaleString("en"), "states a second, teacher-forced");

function head(table, names) {
  const row = add(add(table, "thead"), "tr");
  for (const name of names) add(row, "th", name, name === "instruction" ? "text" : "");
  return add(table, "tbody");
}

function firstWrong(program, rows) {
  const steps = Math.max(program.truth.length - 1, rows.length);
  for (let step = 1; step <= steps; step++) {
    for (let column = 0; column < columns.length; column++) {
      const truth = program.truth[step], said = rows[step - 1];
      if (!truth && said && said[column] === null) continue;
      if (!truth || !said || truth[column] !== said[column]) return [step, column];
    }
  }
  return null;
}

const picker = document.getElementById("program");
programs.forEach((program, index) => {
  const first = firstWrong(program, program.free);
  const option = add(picker, "option", (first ? "✗ step " + first[0] + "  " : "✓  ") + program.name);
  option.value = index;
});

function drawMap() {
  const table = document.getElementById("map");
  table.replaceChildren();
  tip.hidden = true;
  if (!programs.length) return;
  const program = programs[picker.value], mode = document.querySelector("input[name=mode]:checked").value;
  const rows = program[mode], texts = program[mode + "_text"], first = firstWrong(program, rows);
  document.getElementById("verdict").textContent = first
    ? `The first divergence is at step ${first[0]}, in ${columns[first[1]]}.` : "Every state is right.";
  const body = head(table, ["step", ...columns, "instruction"]);
  const steps = Math.max(program.truth.length, rows.length + 1);
  for (let step = 0; step < steps; step++) {
    const line = add(body, "tr"), truth = program.truth[step], said = step ? rows[step - 1] : truth;
    add(line, "th", step);
    columns.forEach((name, column) => {
      const right = truth ? truth[column] : null, value = said ? said[column] : null;
      const before = step && program.truth[step - 1] ? program.truth[step - 1][column] : right;
      let kind = "given", text = value === null ? "–" : String(value);
      if (step && (right === null || value === null)) kind = "missing";
      else if (step && right !== value) { kind = "wrong"; text = `${value}≠${right}`; }
      else if (step) kind = right !== before && (column === 1 || column > 5) ? "changed" : "right";
      if (right === null && value === null) { kind = "given"; text = ""; }
      const cell = add(line, "td", text, kind);
      if (first && first[0] === step && first[1] === column) cell.classList.add("first");
      hover(cell, () => [
        `step ${step}, ${name}${step ? "" : ", given"}`,
        `truth     ${right === null ? "no such step" : right}`,
        `model     ${step ? value === null ? "nothing" : value : "was given it"}`,
        `fetched   ${program.truth_text[step] ?? "–"}`,
        `by model  ${step ? texts[step - 1] ?? "–" : "–"}`,
        `executed  ${step > 1 ? program.truth_text[step - 1] ?? "–" : "nothing yet"}`,
      ].join("\n"));
    });
    add(line, "td", program.truth_text[step] ?? "", "text");
  }
}
picker.addEventListener("change", drawMap);
document.querySelectorAll("input[name=mode]").forEach((button) => button.addEventListener("change", drawMap));
drawMap();

// A share in percent; only 0 is written as 0, so that no cell with an error reads as if it had none.
const short = (share) => share === 0 ? "" : share < 0.0005 ? "<0.1" : (100 * share).toFixed(share < 0.1 ? 1 : 0);
const heat = head(document.getElementById("heat"), ["step", ...columns, "programs"]);
const worst = Math.max(...free.wrong.map((row, step) => Math.max(...row) / free.states[step]), 1e-9);
free.wrong.forEach((row, step) => {
  const line = add(heat, "tr");
  add(line, "th", step + 1);
  row.forEach((wrong, column) => {
    const share = wrong / free.states[step], cell = add(line, "td", short(share));
    cell.style.background = `color-mix(in srgb, var(--wrong) ${wrong ? 8 + 92 * share / worst : 0}%, var(--right))`;
    if (wrong && share / worst > 0.4) cell.style.color = "#fff";
    hover(cell, () => `step ${step + 1}, ${columns[column]}\n${wrong} of ${free.states[step]} wrong, ${percent(share)}`);
  });
  add(line, "td", free.states[step], "given");
});

document.getElementById("scale-end").textContent = worst > 1e-9 ? `${percent(worst)} wrong, the most here` : "nothing is wrong";

function drawHistogram() {
  const last = Math.max(free.states.length + 1, ...Object.keys(free.first_divergence).map(Number));
  const step = Math.max(14, Math.min(44, 900 / last)), tall = 150, make = (tag, values) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(values)) made.setAttribute(name, value);
    return made;
  };
  const svg = make("svg", { width: 40 + step * last, height: tall + 48, role: "img" });
  const most = Math.max(1, ...Object.values(free.first_divergence), ...Object.values(forced.first_divergence));
  for (let at = 1; at <= last; at++) {
    [[free, "one", "free running", 0], [forced, "two", "teacher-forced", 0.45]].forEach(([report, kind, name, shift]) => {
      const count = report.first_divergence[at] ?? 0, high = tall * count / most;
      if (!count) return;
      const bar = make("rect", { x: 30 + (at - 1 + shift) * step, y: 10 + tall - high, width: step * 0.4, height: high, class: kind });
      hover(bar, () => `${name}: ${count} of ${report.programs} programs first go wrong at step ${at}`);
      svg.append(bar);
    });
    if (step >= 22 || at % 5 === 0 && last <= 60 || at % 10 === 0) {
      const label = make("text", { x: 30 + (at - 0.55) * step, y: tall + 26, "text-anchor": "middle" });
      label.textContent = at;
      svg.append(label);
    }
  }
  const axis = (x, y, text, anchor = "start") => {
    const label = make("text", { x, y, "text-anchor": anchor });
    label.textContent = text;
    svg.append(label);
  };
  axis(0, 16, most);
  axis(0, 10 + tall, "0");
  axis(30 + step * last / 2, tall + 40, "step of the first wrong byte", "middle");
  document.getElementById("histogram").append(svg);
  const legend = add(document.getElementById("histogram"), "p", undefined, "note");
  legend.textContent = "■ free running (left bars)   ■ teacher-forced (right bars); height: number of programs";
}
drawHistogram();

function scores(title, key) {
  const section = document.getElementById("scores");
  add(section, "h3", title);
  const holder = add(section, "div", undefined, "scroll");
  const body = head(add(holder, "table"), ["", "times", "teacher-forced: right", "changed", "free running: right", "changed"]);
  for (const [name, score] of Object.entries(forced[key])) {
    const other = free[key][name] ?? {}, line = add(body, "tr");
    add(line, "th", name);
    for (const value of [score.count.toLocaleString("en"), percent(score.accuracy), percent(score.changed_accuracy),
      percent(other.accuracy), percent(other.changed_accuracy)]) add(line, "td", value);
  }
}
scores("ACC and registers after each instruction", "by_instruction");
scores("By addressing mode", "by_addressing_mode");
scores("By register", "by_register");
