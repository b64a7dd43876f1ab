-- nbdev links each exported name in backticks to its definition, wherever it stands. A word such as `realism` or `train` means
-- the function on the function's own page only, so elsewhere the link goes. What should be linked there is linked by hand.
local site = 'https://artinsight.github.io/artinsight/'
local page = (quarto and quarto.doc and quarto.doc.output_file or PANDOC_STATE.output_file or ''):match('[^/]*$')

function Link(link)
  local by_nbdev = #link.content == 1 and link.content[1].t == 'Code' and link.target:sub(1, #site) == site
  if by_nbdev and link.target:match('([^/]*)#') ~= page then return link.content end
end
